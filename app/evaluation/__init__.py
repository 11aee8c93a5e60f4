"""From labels and answers to figures: scores, intervals, answer profiles, differential counts."""
