"""Training losses, regularisers, architecture changes, and the one training loop."""
