"""The small study: methods compared where the truth is known, with a model small enough to train here."""
