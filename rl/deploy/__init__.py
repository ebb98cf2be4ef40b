"""What connects wamtune to robots and to the data that they record."""
