from gkp.cli import main

main()
