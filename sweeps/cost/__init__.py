"""What a study costs before it runs (tokens, FLOPs, hours, memory), and which laws it would identify.

What other folders import from here:

- `bill`: counts and times.
- `plan_table`: the bill as a table and a figure.
- `memory`: what fits on which mesh.
- `identification`: which questions a design answers.
"""

__all__ = ["bill", "identification", "memory", "plan_table"]
