"""From corpora to token stores; vocabularies; SeqIO tasks and mixtures over both."""
