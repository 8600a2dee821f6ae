"""The OpenAI API as data: its types, its errors, and how requests are read and answers written. Pure."""
