"""The miniature AnyGPT that this project trained itself: SmolLM2 with codes of small tokenizers made here."""
