"""The whole site in processes, judged from outside: planted wrong controllers are found guilty, the right one is not."""
