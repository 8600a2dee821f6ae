"""The small operations of a forward on the CPU, in C++; torch does without them where there is no compiler."""
