"""The visible loops, one file each."""
