"""The tabs: Gradio only. Nothing in here imports torch at module level."""
