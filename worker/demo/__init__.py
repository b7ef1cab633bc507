"""Four simulated vendors, real servers without root, and the one-command show. Nothing here runs in production."""
