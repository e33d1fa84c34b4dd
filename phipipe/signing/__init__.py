"""Who made a package: signatures in the format of OpenSSF model signing 1.0, and whom users trust.

``sign`` writes a signature, ``opening`` opens packages as the user's trust file demands. The
library ``model-signing`` is imported by ``library`` alone; it is an extra, and everything else here
does without it.
"""
