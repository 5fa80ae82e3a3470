from ._listing import main

main()
