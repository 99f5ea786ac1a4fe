"""From requests to tokens: sequences, scheduling, batches, sampling. The scheduler and sequences import no torch."""
