"""Bytes to framed pixels: decoding, DICOM, metadata removal, the crop to the cell."""
