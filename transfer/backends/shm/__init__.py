"""One host: D's landing zones are memory that P maps too and packs straight into; a Unix socket carries the rest."""
