"""What would have happened: logged decisions judged without the shop."""
