from .study import main

if __name__ == '__main__':  # a process of the pool imports this file, too
    main()
