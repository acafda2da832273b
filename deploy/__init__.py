"""What stands between the app and the world: limits, headers, hosting. No model and no tab."""
