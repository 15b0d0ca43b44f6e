"""The rooms of `tools/image`.

cli        verbs and exit codes
cache      built layouts, by the digest of all that goes into them
recipes    the two images: which packages, files and settings
debian     mirrors, mmdebstrap and packages
layers     tar entries: read, compare, write the same bytes every time
oci        layers and settings to an OCI image layout
programs/  the MPI programs in C
"""
