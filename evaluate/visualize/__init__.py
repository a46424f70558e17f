"""Pictures of directions: what makes a network's layer point along one, and whether its detector agrees."""
