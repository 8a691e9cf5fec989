"""What the stages share: nouns, each small, because every one of them is a DVC dependency."""
