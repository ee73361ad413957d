"""Why does it do that? Remarks of people who look at recommendations, turned into numbers."""
