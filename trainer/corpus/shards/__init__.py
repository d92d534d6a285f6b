"""One preparation in shards, each made anywhere, in any order, and merged to the bytes of a preparation in one go."""
