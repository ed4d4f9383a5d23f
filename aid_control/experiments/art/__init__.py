"""ART: where a sampler puts its noise levels, learned as a control problem, in one dimension and for images."""
