"""What goes over the wire: schemas, the responses made from results, problem documents."""
