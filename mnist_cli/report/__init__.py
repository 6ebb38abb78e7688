"""What people look at: tables, plots and live progress."""
