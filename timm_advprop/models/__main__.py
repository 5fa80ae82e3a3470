from ..cli.models import main

main()
