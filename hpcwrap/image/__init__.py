"""The image room: a reference becomes one squashfs in the store.

reference ─▶ transport (skopeo) ─▶ layers (decompress, index) ─▶ flatten ─▶ squashfs ─▶ store
"""
