//! Intel Query Processing Library (libqpl): its C ABI, opened at run time.
