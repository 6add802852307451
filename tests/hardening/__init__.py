"""Trust: files that are damaged or meant to harm, and jobs that are killed or hindered."""
