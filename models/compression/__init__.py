"""From torch to what ships: export, pruning, int8, a lighter file, and what that costs."""
