"""The checks that ship with ringfence, one small file each, found by entry point."""
