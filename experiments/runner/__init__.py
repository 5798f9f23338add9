"""What all experiments share: presets, claims, records, and the page of results that is made of them."""
