"""A study that could show what choosing on policy is worth: see PLAN.md."""
