"""What a run leaves behind and shows: folder, saved state, inputs, progress."""
