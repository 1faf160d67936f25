"""What every room needs: files that are never half written, progress, statistics, sentences about errors."""
