"""The report of a run: page, figures, paired episodes, videos, model card."""
