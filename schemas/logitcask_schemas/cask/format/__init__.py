"""What the bytes of a cask mean: manifest, columns, codecs. No file is opened here."""
