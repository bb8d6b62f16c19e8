"""Corpora to token stores, and the SeqIO registry over them."""
