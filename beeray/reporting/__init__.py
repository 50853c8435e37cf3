"""The page that a run leaves: figures from its folder, one HTML file. Needs no Ray, no GPU and no store."""
