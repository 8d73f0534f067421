"""From a plain Hugging Face folder to one .gguf file: what llama.cpp calls things, and which bits it gives them."""
