"""Files and folders: written whole, owned by one writer, received with care, shown without being obeyed."""
