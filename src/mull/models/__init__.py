"""The transformer of the Llama, Qwen2, Qwen3 and Mistral families, its attention patterns, and Hugging Face folders."""
