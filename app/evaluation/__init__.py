"""Statistics of labels and answers: scores, intervals, answer profiles, differential counts."""
