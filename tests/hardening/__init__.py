"""Files that are damaged, made up or meant to harm, and what every command must make of them."""
