"""Models of the papers, usable from a script, a notebook or a server. Nothing in here imports Gradio."""
