"""The paper's claims, judged by stated rules over measured figures."""
