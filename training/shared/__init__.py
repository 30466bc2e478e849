"""What several rooms of ``training`` use: runs that resume, learning curves, export, scores on dev sets, padding."""
