"""moe-sparsity: an end-to-end pipeline for the optimal sparsity of mixture-of-experts language models."""
