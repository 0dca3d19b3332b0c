"""One node of the mesh, entire, without IO.  Start reading at `engine`."""
