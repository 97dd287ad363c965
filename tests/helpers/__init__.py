"""What the tests share: inputs, oracles, distances, memory layouts, bad calls."""
